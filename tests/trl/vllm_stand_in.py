"""A stand-in for the vLLM engine, below TRL's own code that talks to it: token ids and log-probabilities come back.

It holds its own copy of the model's weights, which only what TRL sends changes.
"""

from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM
from trl.generation import vllm_generation

from calibrant.policy.generation import written


class Engine:
    """The parts of `vllm.LLM` and of TRL's client of a server that TRL calls."""

    made: list["Engine"] = []  # noqa: RUF012

    def __init__(self, model: str = "", **options: object):
        self.options, self.asked, self.syncs = options, [], 0
        self.model = AutoModelForCausalLM.from_pretrained(model or self.served).float().eval()
        runner = SimpleNamespace(model_runner=SimpleNamespace(model=self))
        self.llm_engine = SimpleNamespace(model_executor=SimpleNamespace(driver_worker=runner))
        Engine.made.append(self)

    def load_weights(self, weights):
        own = dict(self.model.named_parameters())
        for name, value in weights:
            own[name].data.copy_(value)

    def reset_prefix_cache(self):
        self.syncs += 1

    @torch.no_grad()
    def sampled(self, ids, temperature, length):
        """Token ids of one completion, and their log-probabilities under the tempered distribution."""
        prompt = torch.tensor([ids])
        options = dict(do_sample=True, temperature=temperature, top_k=0, top_p=1.0, max_new_tokens=length)
        output = self.model.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), **options)
        logits = self.model(output).logits[0, len(ids) - 1 : -1] / temperature
        tokens = output[0, len(ids) :]
        count = int(written(tokens[None], self.model.generation_config.eos_token_id).sum())
        logps = logits.log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
        return tokens[:count].tolist(), logps[:count].tolist()

    def generate(self, prompts, sampling_params=None, use_tqdm=False, *, features=None, n=1, **options):
        if sampling_params is None:  # a server
            rows = [self.sampled(p, options["temperature"], options["max_tokens"]) for p in prompts for _ in range(n)]
            logprobs = [[[value] for value in logps] for _, logps in rows]
            return {"prompt_ids": prompts, "completion_ids": [ids for ids, _ in rows], "logprobs": logprobs}
        self.asked.append(vars(sampling_params))
        return [self.request(p["prompt_token_ids"], sampling_params) for p in prompts]

    def request(self, prompt, params):
        tokens, logps = self.sampled(prompt, params.temperature, params.max_tokens)
        ranked = [{t: SimpleNamespace(logprob=x, rank=1)} for t, x in zip(tokens, logps, strict=True)]
        return SimpleNamespace(prompt_token_ids=prompt, outputs=[SimpleNamespace(token_ids=tokens, logprobs=ranked)])

    def init_communicator(self, device):
        pass

    def get_server_info(self):
        return {"model_config": {"logprobs_mode": "processed_logprobs"}}

    def update_named_params(self, metadata, weights):
        sent = [(name, value.clone()) for name, value in weights]  # PEFT takes the merged values back in the end
        assert [(name, list(value.shape)) for name, value in sent] == [(name, shape) for name, _, shape in metadata]
        self.load_weights(sent)


def install(monkeypatch: pytest.MonkeyPatch, served: str) -> list[Engine]:
    """Puts the stand-in where TRL finds vLLM; returns the engines that will be made."""
    monkeypatch.setattr(Engine, "made", [])
    monkeypatch.setattr(Engine, "served", served, raising=False)
    monkeypatch.setattr(vllm_generation, "is_vllm_available", lambda: True)
    monkeypatch.setattr(vllm_generation, "LLM", Engine, raising=False)
    monkeypatch.setattr(vllm_generation, "VLLMClient", Engine)
    monkeypatch.setattr(vllm_generation, "SamplingParams", SimpleNamespace, raising=False)
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")
        monkeypatch.delenv(name)  # what TRL sets is taken back with it
    return Engine.made
