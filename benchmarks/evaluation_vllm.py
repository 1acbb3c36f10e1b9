"""Times vLLM for `evaluation.py`: a line of JSON says what to sample, each further line asks for one round.

Run by the interpreter of an environment that has vLLM; needs nothing else.
"""

import json
import sys
import time


def main() -> None:
    """Prints a line `{"seconds": ..., "tokens": ...}` for each round."""
    asked = json.loads(sys.stdin.readline())
    from vllm import LLM, SamplingParams

    longest = max(map(len, asked["prompts"])) + asked["max_new_tokens"]
    llm = LLM(
        asked["model"], dtype=asked["dtype"], max_model_len=longest, disable_log_stats=True,
        logprobs_mode="processed_logprobs", enforce_eager=asked["eager"],
    )  # fmt: skip
    common = {"max_tokens": asked["max_new_tokens"], "detokenize": False}
    greedy = SamplingParams(**common, temperature=0.0)
    sampled = SamplingParams(**common, n=asked["samples"], temperature=asked["temperature"], logprobs=0)
    requests = [{"prompt_token_ids": ids} for ids in asked["prompts"] for _ in range(2)]
    for _ in sys.stdin:
        llm.reset_prefix_cache()
        start = time.perf_counter()
        done = llm.generate(requests, [greedy, sampled] * len(asked["prompts"]), use_tqdm=False)
        seconds = time.perf_counter() - start
        tokens = sum(len(answer.token_ids) for request in done for answer in request.outputs)
        print(json.dumps({"seconds": seconds, "tokens": tokens}), flush=True)


if __name__ == "__main__":
    main()
