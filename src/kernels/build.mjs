/**
 * Compiles the kernels to one WASM module and checks what the engine relies on: imported shared memory, no start function,
 * and no data segment (an active one would overwrite live memory at every instantiation).
 */
import { mkdirSync, readFileSync, rmSync } from 'node:fs';
import asc from 'assemblyscript/asc';

const out = new URL('../../dist/src/kernels/', import.meta.url);
mkdirSync(out, { recursive: true });
const file = new URL('kernels.wasm', out);

const { error, stderr } = await asc.main([
  'src/kernels/index.ts',
  ...['--outFile', 'dist/src/kernels/kernels.wasm', '--runtime', 'stub', '-O3', '--noAssert'],
  ...['--importMemory', '--sharedMemory', '--initialMemory', '1', '--maximumMemory', '65536'],
  ...['--enable', 'simd,threads,bulk-memory', '--zeroFilledMemory'],
]);
if (error) {
  console.error(`kernels: ${error.message}\n${stderr.toString()}`);
  process.exit(1);
}

const bytes = readFileSync(file);
const module = new WebAssembly.Module(bytes);
const problems = [
  ...forbiddenSections(bytes),
  ...WebAssembly.Module.imports(module)
    .filter((one) => !(one.module === 'env' && one.name === 'memory' && one.kind === 'memory'))
    .map((one) => `imports ${one.module}.${one.name}`),
];
if (problems.length > 0) {
  rmSync(file);
  console.error(`kernels: ${problems.join(', ')}`);
  process.exit(1);
}

/** Walks the sections (WebAssembly core specification 5.5): 8 is start, 11 is data. */
function forbiddenSections(wasm) {
  const found = [];
  const names = { 8: 'has a start function', 11: 'has a data segment' };
  for (let at = 8; at < wasm.length; ) {
    const id = wasm[at++];
    let size = 0;
    for (let shift = 0; ; shift += 7) {
      const byte = wasm[at++];
      size += (byte & 127) * 2 ** shift;
      if (byte < 128) break;
    }
    if (names[id]) found.push(names[id]);
    at += size;
  }
  return found;
}
