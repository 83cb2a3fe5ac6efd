/** The chart of a race: a panel for each measure, a bar for each subject. */
import { type Bar, barsSvg, type Tone } from '../chart.js';
import { ROWS } from '../report.js';
import type { Race } from './publish.js';
import { isWeft, KERNEL, subjectsOf, unitOf } from './table.js';

/** The SVG text; measures without rows are left out. */
export function raceChart({ setup, rows }: Race): string {
  const subjects = subjectsOf(rows);
  const panels = ROWS.flatMap((info) => {
    const ofMeasure = rows.filter(({ measure }) => measure === info.measure);
    if (ofMeasure.length === 0) return [];
    const bars = subjects.map((label): Bar => {
      const row = ofMeasure.find(({ subject }) => subject === label);
      const figures = row?.rounds.filter((figure) => figure !== null) ?? [];
      return {
        label,
        tone: toneOf(label),
        median: row?.median ?? null,
        min: figures.length > 0 ? Math.min(...figures) : null,
        max: figures.length > 0 ? Math.max(...figures) : null,
      };
    });
    const note = `${unitOf(info)}, ${info.better === 'higher' ? 'more' : 'less'} is better`;
    const reference = bars.find(({ label }) => label === KERNEL)?.median ?? null;
    return [{ title: info.title, note, bars, reference, digits: info.digits }];
  });
  const line = panels.some(({ reference }) => reference !== null) ? '; dashed line: kernel VXLAN' : '';
  return barsSvg({
    title: `The race, ${setup.date.slice(0, 10)}`,
    subtitle: `Bars: median of the rounds; whiskers: least and most${line}. direct: no overlay.`,
    panels,
  });
}

function toneOf(subject: string): Tone {
  if (subject === 'direct') return 'bound';
  if (subject === KERNEL) return 'kernel';
  return isWeft(subject) ? 'weft' : 'other';
}
