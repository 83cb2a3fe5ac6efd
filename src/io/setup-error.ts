/** A failure while setting up: one line that says what failed, on what, and what to do. `weftd` prints it and exits 1. */
export class SetupError extends Error {
  /** Stable code, for tests and for people who search for it. */
  readonly code: string;

  constructor(code: string, message: string) {
    super(message);
    this.name = 'SetupError';
    this.code = code;
  }
}
