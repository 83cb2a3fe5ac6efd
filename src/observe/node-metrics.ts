/**
 * Node's own metrics (process_*, nodejs_*), as prom-client collects them. One set for the process: what it listens to (garbage
 * collections) cannot be let go of again.
 *
 * Left out: gauges named `_total`, to which `promtool check metrics` objects; and the event loop's delay by quantiles, for which
 * Node would wake this thread every 10 ms, 0.7 % of a core for nothing while the daemon is idle. nodejs_eventloop_lag_seconds stays: it
 * is measured at scrape.
 */
import { collectDefaultMetrics, Registry } from 'prom-client';

/** Milliseconds between the wake-ups for what is left out: as long as a timer can be. */
const HARDLY_EVER = 2 ** 31 - 1;
const LEFT_OUT = /^nodejs_active_[a-z]+_total$|^nodejs_eventloop_lag_(min|max|mean|stddev|p\d+)_seconds$/;

let collected: Registry | undefined;

/** Adds them to `registry`. */
export function addNodeMetrics(registry: Registry): void {
  if (collected === undefined) {
    collected = new Registry();
    collectDefaultMetrics({ register: collected, eventLoopMonitoringPrecision: HARDLY_EVER });
  }
  for (const { name } of collected.getMetricsAsArray()) {
    const metric = collected.getSingleMetric(name);
    if (metric && !LEFT_OUT.test(name)) registry.registerMetric(metric);
  }
}
