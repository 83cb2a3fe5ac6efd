/** Questions to /v1/explain that nobody should ask. */

/** What a parameter may be, more or less. */
const VALUES = {
  to: [
    '10.5.2.2',
    '10.5.1.2',
    '10.99.0.1',
    'fd00:5:0:2::2',
    '::',
    '255.255.255.255',
    '224.0.0.1',
    'b',
    'nobody',
    '02:00:00:00:00:01',
  ],
  from: ['10.5.1.1', 'fd00:5:0:1::1', '0.0.0.0', '::1', 'ff02::1'],
  in: ['b', '192.168.77.2', '192.168.77.99', 'fd77::2', 'nobody'],
  mac: ['02:00:00:00:00:01', 'ff:ff:ff:ff:ff:ff'],
  size: ['20', '28', '84', '1500', '1501', '9000', '65535', '65536', '19'],
  df: ['0', '1', '2'],
  ttl: ['0', '1', '64', '255'],
  proto: ['icmp', 'udp', 'tcp', 'arp', '0', '255', '256'],
  tos: ['0', '3', '255'],
  vni: ['0', '1', '16777216'],
  packet: ['45', '4500001400000000400100000a0501010a050202', '00'.repeat(20), 'ff'.repeat(2000), '6'.repeat(80), '454'],
  vnet: ['00'.repeat(10), 'ff'.repeat(10), '01'],
  nonsense: ['1'],
} as const;
/** Of any parameter. */
const ODD = [
  '',
  '-1',
  '1e9',
  '0x10',
  ' ',
  '%00',
  '%0a',
  '%zz',
  '%',
  'ä',
  '\u202e',
  'NaN',
  '1.5',
  'a'.repeat(3000),
  '__proto__',
  '10.5.2.2/24',
];

/** So many paths of requests to explain something, the same in each run: some make sense, most do not. */
export function* nonsense(count: number): Generator<string> {
  let state = 7;
  const below = (most: number): number => {
    state = (Math.imul(state, 1_103_515_245) + 12_345) >>> 0;
    return (state >>> 8) % most;
  };
  const names = Object.keys(VALUES) as (keyof typeof VALUES)[];
  for (let i = 0; i < count; i++) {
    const parameters = Array.from({ length: 1 + below(4) }, (_, nth) => {
      const name = nth === 0 && below(4) > 0 ? 'to' : names[below(names.length)];
      const values = below(6) === 0 ? ODD : VALUES[name];
      const value = values[below(values.length)];
      // What looks like an escape goes out as it is.
      return `${name}=${value.includes('%') ? value : encodeURIComponent(value)}`;
    });
    yield `/v1/explain?${parameters.join('&')}`;
  }
}
