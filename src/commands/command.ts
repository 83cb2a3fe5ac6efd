/**
 * The shape of a command of `weft`, and how one is run. A module exports a WeftCommand, and list.ts names it; the frame around it
 * adds `--help`, `-j` and `--socket`, reads the arguments, finds the daemon and turns errors into one line.
 */
import { Command, CommanderError } from 'commander';
import { SOCKET_VARIABLE } from '../inspect/protocol.js';
import { UsageError } from '../option.js';
import type { DaemonClient } from './daemon/client.js';
import { findDaemon } from './daemon/discovery.js';
import { createOutput, type Output } from './text/output.js';

/** `O`: the options as commander gives them, by their names in camel case, without `json`, `socket` and `help`. */
export interface WeftCommand<O extends object = object> {
  readonly name: string;
  /** One line, for the list and for its help. */
  readonly summary: string;
  /** More of its help, before the options; a sentence or some. */
  readonly description?: string;
  /** The end of its help: what to type and what comes of it, two spaces before each line. */
  readonly examples: string;
  /** It asks no daemon, and has no `--socket`. */
  readonly local?: boolean;
  /** It has no `-j`. */
  readonly noJson?: boolean;
  /** What its arguments can be, for the shell. */
  readonly completes?: 'peers' | 'files' | readonly string[];
  /** Options by their long name, with or without its dashes, whose value is a peer's name or one of some words, for the shell. */
  readonly optionValues?: Readonly<Record<string, 'peers' | 'files' | readonly string[]>>;
  /** Adds arguments and options to commander's command. */
  define?(command: Command): void;
  /**
   * Does it; what it prints goes to `out`. Rejects with a UsageError (exit code 2) or a SetupError (1) whose message is one line: what
   * failed, on what, what to do. A command that found its answer to be "no" sets process.exitCode to 1.
   */
  run(invocation: Invocation<O>): Promise<void>;
}

export interface Invocation<O extends object = object> {
  /** In their order; one that was left out is not there, unless it has a default. */
  readonly args: readonly string[];
  readonly options: O;
  /** One JSON value is wanted, or one a line. */
  readonly json: boolean;
  readonly out: Output;
  /**
   * Aborts at the first SIGINT, SIGTERM or SIGHUP, and when nobody reads standard output any more: end soon, and well. For commands that
   * go on: one that never looks at it is ended by the signal itself.
   */
  readonly signal: AbortSignal;
  /** The daemon that is meant; asks nothing yet. Rejects with a SetupError where there is none, or several. */
  daemon(): Promise<DaemonClient>;
}

interface CommonOptions {
  readonly json?: boolean;
  readonly socket?: string;
}

/** Runs a command, or prints its help. Rejects as WeftCommand.run. */
export async function runCommand(
  command: WeftCommand<object>,
  argv: readonly string[],
  env: Readonly<Record<string, string | undefined>>,
): Promise<void> {
  const parser = parserOf(command);
  const out = createOutput(env);
  if (!parse(parser, command, argv, out)) return;
  const { json = false, socket, ...options } = parser.opts<CommonOptions>();
  const args = parser.processedArgs.filter((arg): arg is string => arg !== undefined).flat();
  if (socket === '') throw new UsageError('--socket "": expected the path of a socket');
  const path = socket ?? (env[SOCKET_VARIABLE] || undefined);
  const daemon = (): Promise<DaemonClient> => findDaemon(path);
  const invocation: Invocation = {
    args,
    options,
    json,
    out,
    get signal() {
      return out.signal; // from here on the command decides when it ends
    },
    daemon,
  };
  await command.run(invocation);
  await out.flushed();
}

/** Commander's command, with what all of them have. */
export function parserOf(command: WeftCommand<object>): Command {
  const { name, summary, description, examples, local = false, noJson = false } = command;
  const parser = new Command(`weft ${name}`)
    .description([sentence(summary), description].filter(Boolean).join('\n\n'))
    .configureHelp({ helpWidth: 100 })
    .showSuggestionAfterError(false)
    .allowExcessArguments(false)
    .exitOverride()
    .helpOption('-h, --help', 'print this and exit');
  command.define?.(parser);
  if (!noJson) parser.option('-j, --json', 'print JSON');
  if (!local)
    parser.option(
      '--socket <path>',
      "the daemon's control socket (default: $WEFT_SOCKET, or the one of this network namespace)",
    );
  const taught = examples.replace(/^\s*Examples:\n|^\n+/, '').trimEnd();
  return parser.addHelpText('after', `\nExamples:\n${taught}\n\nExit codes: 0 done, 1 failed, 2 wrong usage.`);
}

const sentence = (text: string): string => `${text.charAt(0).toUpperCase()}${text.slice(1)}.`;

/** False when all that was wanted is the help. */
function parse(parser: Command, { name }: WeftCommand<object>, argv: readonly string[], out: Output): boolean {
  parser.configureOutput({ writeOut: (text) => out.print(text), writeErr: () => {} });
  try {
    parser.parse([...argv], { from: 'user' });
    return true;
  } catch (error) {
    if (!(error instanceof CommanderError)) throw error;
    if (error.code === 'commander.helpDisplayed') return false;
    throw new UsageError(`${error.message.replace(/^error: |\.$/g, '')}: weft ${name} --help lists what there is`);
  }
}
