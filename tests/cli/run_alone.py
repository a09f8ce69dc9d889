"""`run` as a process of its own, to be killed: BROKERS PREFIX INPUT OUTPUT [MAX_COST_PICO]. Prints its exit code's meaning."""

import sys
from pathlib import Path

from inference_engine.cli.progress import PlainProgress
from inference_engine.cli.run import RunOptions, run_job
from inference_engine.schemas.topics import Topics


def main(arguments: list[str]) -> int:
    brokers, prefix, source, target = arguments[:4]
    options = RunOptions(Path(source), Path(target), window=200, max_cost_pico=int(arguments[4]) if arguments[4:] else None, first_wait_s=5)
    result = run_job(options, lambda: brokers, Topics(prefix), PlainProgress(every=0.2), lambda: lambda _row: (10**9,))
    return result.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
