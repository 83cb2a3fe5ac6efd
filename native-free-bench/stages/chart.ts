/** The chart of cost by stage of the walk. */
import { stackedBarsSvg } from '../../race/chart.js';
import type { Cost } from './stages.js';
import { STAGES } from './table.js';

/** The SVG text; `machine` says where and when. */
export function stagesChart(costs: readonly Cost[], machine: string): string {
  const used = STAGES.filter(({ name }) => costs.some(({ stages }) => (stages[name] ?? 0) > 0));
  const groups = [...new Set(costs.map(({ group }) => group))];
  return stackedBarsSvg({
    title: 'What a packet costs, by stage of the walk',
    subtitle: `ns on one core, without the kernel's share; each group on its own scale. ${machine}`,
    stages: used,
    groups: groups.map((title) => ({
      title,
      stacks: costs
        .filter(({ group }) => group === title)
        .map(({ label, nanoseconds, stages }) => ({
          label,
          note: `${nanoseconds.toFixed(nanoseconds < 100 ? 1 : 0)} ns`,
          parts: used.map(({ name }) => ({ name, value: stages[name] ?? 0 })),
        })),
    })),
  });
}
