"""Times vLLM for `generation.py`: reads what to do as JSON from standard input, prints seconds of each round as JSON.

Run by the interpreter of an environment that has vLLM, and psutil with it.
"""

import json
import sys
import time

import psutil


def processor_seconds() -> float:
    """Of this process and those that it started: vLLM's workers."""
    own = psutil.Process()
    times = [process.cpu_times() for process in (own, *own.children(recursive=True))]
    return sum(used.user + used.system for used in times)


def main() -> None:
    """Prints a list of rounds: seconds and processor seconds of one token, the same of all, as the last line."""
    asked = json.loads(sys.stdin.read())
    from vllm import LLM, SamplingParams

    settings = {"dtype": asked["dtype"], "enforce_eager": asked["eager"], "max_model_len": 2048}
    llm = LLM(asked["model"], disable_log_stats=True, **settings)
    prompts = [{"prompt_token_ids": ids} for ids in asked["prompts"]]

    def seconds(new: int) -> tuple[float, float]:
        llm.reset_prefix_cache()
        sampling = SamplingParams(
            n=asked["rollouts"], temperature=0.9, max_tokens=new, ignore_eos=True, detokenize=False
        )
        clock, processor = time.perf_counter(), processor_seconds()
        done = llm.generate(prompts, sampling, use_tqdm=False)
        taken = time.perf_counter() - clock, processor_seconds() - processor
        assert all(len(answer.token_ids) == new for request in done for answer in request.outputs)
        return taken

    rounds = [(*seconds(1), *seconds(asked["new"])) for _ in range(asked["repeats"] + 1)]
    print(json.dumps(rounds[1:]))


if __name__ == "__main__":
    main()
