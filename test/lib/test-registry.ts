/** A registry that says what the test tells it to. */
import type { Registry, RegistryUpdate } from '../../src/control/registry.js';
import { Bell } from '../../src/control/waiting.js';

/** `undefined` among the updates makes it throw. */
export class TestRegistry implements Registry {
  readonly name = 'test registry';
  readonly cursors: (string | undefined)[] = [];
  #waiting: (RegistryUpdate | undefined)[] = [];
  readonly #bell = new Bell();

  say(...updates: (RegistryUpdate | undefined)[]): void {
    this.#waiting.push(...updates);
    this.#bell.ring();
  }

  async *watch(signal: AbortSignal, cursor?: string): AsyncGenerator<RegistryUpdate> {
    this.cursors.push(cursor);
    while (!signal.aborted) {
      this.#bell.silence();
      while (this.#waiting.length > 0) {
        const update = this.#waiting.shift();
        if (!update) throw new Error('connection lost');
        yield update;
      }
      await this.#bell.wait(signal);
    }
  }
}
