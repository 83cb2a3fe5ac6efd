/**
 * Arguments in the syntax of Go's package flag, which flannel's users write: one dash or two, `-x v` or `-x=v`; a switch is
 * `-x` or `-x=false`, never `-x false`; whatever follows a flag that needs a value is its value, dashes and all; the flags end
 * at `--` or at the first argument that is none.
 *
 * Source: parseOne of https://go.dev/src/flag/flag.go
 */

export interface GoFlag {
  readonly name: string;
  /** Of a switch without one: `true`. */
  readonly value: string;
}

export interface GoFlags {
  /** In the order of the arguments. */
  readonly flags: readonly GoFlag[];
  /** What follows the flags. */
  readonly rest: readonly string[];
  /** Why reading ended early; undefined: it did not. */
  readonly mistake: string | undefined;
}

/** Never throws. `isSwitch`: true for a flag that needs no value, undefined for an unknown one. */
export function readGoFlags(argv: readonly string[], isSwitch: (name: string) => boolean | undefined): GoFlags {
  const flags: GoFlag[] = [];
  const end = (rest: readonly string[], mistake?: string): GoFlags => ({ flags, rest, mistake });
  for (let i = 0; i < argv.length; ) {
    const argument = argv[i];
    if (!/^-./s.test(argument)) return end(argv.slice(i));
    i++;
    if (argument === '--') return end(argv.slice(i));
    const [, dashes, name, equals, text] = /^(--?)([^=]*)(=?)(.*)$/s.exec(argument) ?? [];
    if (name === '' || name.startsWith('-')) return end(argv.slice(i), `'${argument}' is not a flag`);
    const needsNone = isSwitch(name);
    if (needsNone === undefined) return end(argv.slice(i), `unknown option '${dashes}${name}'`);
    if (equals) flags.push({ name, value: text });
    else if (needsNone) flags.push({ name, value: 'true' });
    else if (i < argv.length) flags.push({ name, value: argv[i++] });
    else return end([], `option '${dashes}${name}' argument missing`);
  }
  return end([]);
}
