/** The part of binary-parser that is used here and in the tests: its own types are not reachable under NodeNext resolution. */
declare module 'binary-parser' {
  interface FieldOptions {
    readonly length?: number | string | ((this: unknown) => number);
    readonly readUntil?: 'eof';
    readonly type?: string | Parser;
  }
  /** Fields in their order. `parse` throws a RangeError where the bytes end before the fields do. */
  export class Parser {
    /** Of the fields that follow; big if it is not said. */
    endianess(order: 'big' | 'little'): this;
    uint8(name: string): this;
    uint16(name: string): this;
    uint32(name: string): this;
    bit1(name: string): this;
    bit2(name: string): this;
    bit3(name: string): this;
    bit4(name: string): this;
    bit6(name: string): this;
    bit8(name: string): this;
    bit9(name: string): this;
    bit13(name: string): this;
    bit20(name: string): this;
    bit24(name: string): this;
    skip(length: number): this;
    buffer(name: string, options: FieldOptions): this;
    array(name: string, options: FieldOptions): this;
    parse(bytes: Uint8Array): unknown;
  }
}
