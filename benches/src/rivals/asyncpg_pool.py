"""Single inserts through asyncpg's pool: what a bot in Python does today.

Takes a load as JSON and prints its report as JSON, as `oncegate-bench load` does.
"""

import asyncio
import json
import sys
import time

import asyncpg

INSERT = "INSERT INTO processed_events (team_id, event_id) VALUES ($1, $2) ON CONFLICT DO NOTHING"
TEAMS = ["T024BE7LD", "T0G9PQBBK", "T061EG9R6", "T2ABCDEF1",
         "T3XYZQWE2", "T4MNBVCX3", "T5LKJHGF4", "T6POIUYT5"]


class Tally:
    """What the callers see between two moments."""

    def __init__(self, start, end):
        self.start, self.end = start, end
        self.failed = self.wrong = 0
        self.slowest_failure = 0.0
        self.latencies = []


async def caller(pool, number, seed, begun, tally):
    """Inserts one event after another until the load is over."""
    team = TEAMS[number % len(TEAMS)]
    count = 0
    while (sent := time.monotonic()) < tally.end:
        count += 1
        micros = seed + int((sent - begun) * 1e6)
        event = f"Ev{micros:013x}{number & 0xff:02x}{count & 0xffff:04x}"
        try:
            status = await pool.execute(INSERT, team, event)
        except (OSError, asyncpg.PostgresError) as error:
            if not tally.failed:
                print(f"a request failed: {error}", file=sys.stderr)
            tally.failed += 1
            tally.slowest_failure = max(tally.slowest_failure, time.monotonic() - sent)
            await asyncio.sleep(0.01)
            continue
        now = time.monotonic()
        if status != "INSERT 0 1":
            tally.wrong += 1
        elif tally.start <= now < tally.end:
            tally.latencies.append(now - sent)


async def cpu(tally):
    """The process's seconds of CPU between the two moments."""
    await asyncio.sleep(tally.start - time.monotonic())
    before = time.process_time()
    await asyncio.sleep(tally.end - time.monotonic())
    return time.process_time() - before


def quantile(latencies, share):
    """A latency of the sorted ones, in microseconds."""
    if not latencies:
        return 0.0
    return latencies[min(len(latencies) - 1, int(len(latencies) * share))] * 1e6


async def main(spec):
    size = spec["connections"]
    async with asyncpg.create_pool(spec["target"], min_size=size, max_size=size) as pool:
        begun = time.monotonic()
        start = begun + spec["warmup"]
        tally = Tally(start, start + spec["seconds"])
        callers = [caller(pool, number, spec["seed"], begun, tally)
                   for number in range(spec["callers"])]
        client_cpu, *_ = await asyncio.gather(cpu(tally), *callers)
    latencies = sorted(tally.latencies)
    print(json.dumps({
        "done": len(latencies), "failed": tally.failed, "wrong": tally.wrong,
        "seconds": spec["seconds"], "rate": len(latencies) / spec["seconds"],
        "p50_us": quantile(latencies, 0.5), "p99_us": quantile(latencies, 0.99),
        "p999_us": quantile(latencies, 0.999), "max_us": quantile(latencies, 1.0),
        "max_failed_us": tally.slowest_failure * 1e6, "client_cpu": client_cpu,
    }))


asyncio.run(main(json.loads(sys.argv[1])))
