/**
 * What remote.ts and agent.ts say to each other over a unix socket, one command a connection.
 *
 * The client begins with one line of JSON, a `Request`. Everything after it, in both directions, is frames:
 *
 *     offset 0  type     u8     one of FRAME
 *            1  length   u32    of the payload, big-endian, at most MAX_PAYLOAD
 *            5  payload
 *
 *     client → agent    stdin    bytes; none: the end of the input
 *                       signal   a signal's name, for the command itself
 *     agent → client    taken    u32: so many bytes of input have reached the command
 *                       stdout, stderr   bytes
 *                       exit     JSON, an `Exit`; the last frame
 *                       refused  JSON, a `Refusal`, instead of an exit; the last frame
 *
 * Output is held back by the socket: whoever does not read stops the command's writes. Input is not, for an agent that did
 * not read the socket would not see its client go: it is held back by `taken`, with at most WINDOW bytes on their way.
 */

export const FRAME = { stdin: 0, signal: 1, taken: 2, stdout: 3, stderr: 4, exit: 5, refused: 6 } as const;
export type FrameType = (typeof FRAME)[keyof typeof FRAME];

export interface Request {
  /** The program, found by the agent's PATH, and its arguments. */
  readonly argv: readonly string[];
  /** Added to the agent's environment. */
  readonly env?: Readonly<Record<string, string>>;
}

export interface Exit {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
}

export interface Refusal {
  /** One line. */
  readonly error: string;
  /** What the client exits with. */
  readonly code: number;
}

/** Of the first line, its newline included. */
export const MAX_REQUEST = 256 << 10;
export const MAX_PAYLOAD = 256 << 10;
/** Most bytes of input that the command has not taken yet. */
export const WINDOW = 256 << 10;

/** Exit codes as env(1) and docker(1) have them: what failed was not the command. */
export const EXIT_NO_AGENT = 125;
export const EXIT_CANNOT_RUN = 126;
export const EXIT_NOT_FOUND = 127;

const HEAD = 5;

export function frame(type: FrameType, payload: Uint8Array | string): Buffer {
  const bytes = typeof payload === 'string' ? Buffer.from(payload) : payload;
  const out = Buffer.allocUnsafe(HEAD + bytes.length);
  out[0] = type;
  out.writeUInt32BE(bytes.length, 1);
  out.set(bytes, HEAD);
  return out;
}

/** Finds the frames in a stream of bytes. */
export class FrameReader {
  readonly #allowed: readonly number[];
  #rest: Buffer = Buffer.alloc(0);

  /** `allowed`: the types that this side may receive. */
  constructor(allowed: readonly FrameType[]) {
    this.#allowed = allowed;
  }

  /** Calls `take` for each frame that `bytes` completes. Throws, with one line, at what is no frame. */
  push(bytes: Buffer, take: (type: FrameType, payload: Buffer) => void): void {
    let left = this.#rest.length > 0 ? Buffer.concat([this.#rest, bytes]) : bytes;
    while (left.length >= HEAD) {
      const type = left[0];
      const length = left.readUInt32BE(1);
      if (!this.#allowed.includes(type)) throw new Error(`what came is no frame (type ${type})`);
      if (length > MAX_PAYLOAD) throw new Error(`a frame of ${length} bytes, more than ${MAX_PAYLOAD}`);
      if (left.length < HEAD + length) break;
      take(type as FrameType, left.subarray(HEAD, HEAD + length));
      left = left.subarray(HEAD + length);
    }
    this.#rest = left;
  }
}
