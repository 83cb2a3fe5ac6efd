/**
 * What can come next on the command line, for the shell's scripts (shells.ts), which call `weft __complete WORD…` with the words after
 * `weft` up to the one that is being typed. A line for each: the word, and after a tab what it is. `:files` stands for the
 * shell's own completion of paths. Nothing here may fail loudly: somebody is typing.
 */
import type { Command, Option } from 'commander';
import { parserOf, type WeftCommand } from './command.js';
import { DaemonClient } from './daemon/client.js';
import { findDaemon } from './daemon/discovery.js';
import { COMMANDS, commandNamed } from './list.js';
import { clean } from './text/table.js';

export const FILES = ':files';
const SOCKET = '--socket';
/** Milliseconds that somebody who types waits for. */
const PATIENCE = 1000;

export type Candidate = readonly [word: string, meaning?: string | undefined];
type Source = NonNullable<WeftCommand['completes']>;

/** The lines to print. */
export async function completeLines(words: readonly string[], env: NodeJS.ProcessEnv): Promise<string> {
  const candidates = await candidatesFor(words, env).catch((): Candidate[] => []);
  return candidates.map(([word, meaning]) => `${meaning === undefined ? word : `${word}\t${meaning}`}\n`).join('');
}

async function candidatesFor(words: readonly string[], env: NodeJS.ProcessEnv): Promise<Candidate[]> {
  const typed = words.at(-1) ?? '';
  const all = words.length < 2 ? commandsAndHelp() : await forCommand(words, typed, env);
  return all.filter(([word]) => word === FILES || word.startsWith(typed));
}

const commandsAndHelp = (): Candidate[] => [
  ...COMMANDS.map(({ name, summary }): Candidate => [name, summary]),
  ['--help', 'print the commands and exit'],
  ['--version', 'print the version and exit'],
];

async function forCommand(words: readonly string[], typed: string, env: NodeJS.ProcessEnv): Promise<Candidate[]> {
  const listed = commandNamed(words[0]);
  if (!listed) return [];
  if ('standalone' in listed) {
    return typed.startsWith('-') ? [...(await listed.flags()), '--help'].map((flag): Candidate => [flag]) : [[FILES]];
  }
  const command = await listed.load();
  const parser = parserOf(command);
  const socket = socketIn(words) ?? (env.WEFT_SOCKET || undefined);
  const ask = async (): Promise<DaemonClient> => new DaemonClient((await findDaemon(socket)).socket, PATIENCE);
  const [, flag, sign] = /^(--[^=]+)(=)/.exec(typed) ?? [];
  if (sign) {
    const values = await valuesOf(optionOf(parser, flag), command, ask);
    return values.map(([word, meaning]): Candidate => (word === FILES ? [word] : [`${flag}=${word}`, meaning]));
  }
  const before = optionOf(parser, words.at(-2) ?? '');
  if (before && (before.required || before.optional)) return valuesOf(before, command, ask);
  if (typed.startsWith('-')) return flagsOf(parser);
  return from(command.completes ?? choicesOf(parser), ask);
}

const optionOf = (parser: Command, flag: string): Option | undefined =>
  parser.options.find(({ long, short }) => flag !== '' && (long === flag || short === flag));

const choicesOf = (parser: Command): readonly string[] =>
  parser.registeredArguments.flatMap(({ argChoices }) => argChoices ?? []);

const flagsOf = (parser: Command): Candidate[] => [
  ...parser.options.map(({ long, short, description }): Candidate => [long ?? short ?? '', description]),
  ['--help', 'print this and exit'],
];

async function valuesOf(
  option: Option | undefined,
  { optionValues = {} }: WeftCommand,
  ask: () => Promise<DaemonClient>,
): Promise<Candidate[]> {
  if (!option) return [];
  if (option.long === SOCKET) return [[FILES]];
  const { long = '' } = option;
  return from(optionValues[long] ?? optionValues[long.slice(2)] ?? option.argChoices ?? [], ask);
}

async function from(source: Source, ask: () => Promise<DaemonClient>): Promise<Candidate[]> {
  if (source === 'files') return [[FILES]];
  if (source !== 'peers') return source.map((word): Candidate => [word]);
  const { peers } = await (await ask()).get('peers');
  const names = new Map(peers.map(({ name, address }) => [name, address]));
  // What a shell might read as more than one word, or as an instruction, is left to be typed.
  return [...names]
    .filter(([name]) => /^[\w.:@%+-]+$/.test(name))
    .map(([name, address]): Candidate => [name, clean(address)]);
}

function socketIn(words: readonly string[]): string | undefined {
  for (const [i, word] of words.slice(0, -1).entries()) {
    if (word === SOCKET) return words[i + 1];
    if (word.startsWith(`${SOCKET}=`)) return word.slice(SOCKET.length + 1);
  }
  return undefined;
}
