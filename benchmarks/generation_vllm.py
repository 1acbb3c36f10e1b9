"""Times vLLM for `generation.py`: reads what to do as JSON from standard input, prints seconds of each round as JSON.

Run by the interpreter of an environment that has vLLM; needs nothing else.
"""

import json
import sys
import time


def main() -> None:
    """Prints `[[seconds of one token, seconds of all], ...]` as the last line."""
    asked = json.loads(sys.stdin.read())
    from vllm import LLM, SamplingParams

    llm = LLM(asked["model"], dtype=asked["dtype"], max_model_len=2048, disable_log_stats=True)
    prompts = [{"prompt_token_ids": ids} for ids in asked["prompts"]]

    def seconds(new: int) -> float:
        llm.reset_prefix_cache()
        sampling = SamplingParams(
            n=asked["rollouts"], temperature=0.9, max_tokens=new, ignore_eos=True, detokenize=False
        )
        start = time.perf_counter()
        done = llm.generate(prompts, sampling, use_tqdm=False)
        assert all(len(answer.token_ids) == new for request in done for answer in request.outputs)
        return time.perf_counter() - start

    rounds = [(seconds(1), seconds(asked["new"])) for _ in range(asked["repeats"] + 1)]
    print(json.dumps(rounds[1:]))


if __name__ == "__main__":
    main()
