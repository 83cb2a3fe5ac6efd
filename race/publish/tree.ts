/** Which Weft this is: its version, and where there is git, the commit. */
import { spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';

/** The repository, seen from dist/race/publish/. */
export const ROOT = fileURLToPath(new URL('../../..', import.meta.url));

export interface Commit {
  /** Abbreviated hash. */
  readonly hash: string;
  /** Whether files under version control differ from it. */
  readonly dirty: boolean;
}

/** undefined without git, as in an image. */
export function commitOf(root = ROOT): Commit | undefined {
  const git = (...args: string[]): string | undefined => {
    const done = spawnSync('git', ['-C', root, ...args], { encoding: 'utf8' });
    return done.status === 0 ? done.stdout.trim() : undefined;
  };
  const hash = git('rev-parse', '--short=10', 'HEAD');
  return hash === undefined ? undefined : { hash, dirty: git('status', '--porcelain', '--untracked-files=no') !== '' };
}

/** As "0.1.0, commit 79d96c2a01 with changes". */
export function weftVersion(root = ROOT): string {
  const { version } = JSON.parse(readFileSync(`${root}/package.json`, 'utf8')) as { version: string };
  const commit = commitOf(root);
  if (!commit) return version;
  return `${version}, commit ${commit.hash}${commit.dirty ? ' with changes' : ''}`;
}
