// The WASM kernels: pure functions on the engine's memory, one file a matter. AssemblyScript, compiled by `npm run build`
// into one module with imported shared memory, the stub runtime and no static data (the build checks that: an active data
// segment would overwrite live memory at every instantiation).
//
// All per-segment work is here: TypeScript decides per packet read or message received, a kernel then runs through the
// segments (hot-path.md: 0.55 -> 0.64 of kernel VXLAN). src/io/kernels.ts gives these functions their types and contracts.
export { copy, finish, sum } from './checksum';
export { merge, mergeClose } from './merge';
export { split } from './split';
