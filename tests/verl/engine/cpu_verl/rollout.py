"""A rollout backend: `generate` of transformers in one Ray actor per replica, behind verl's server interface."""

import asyncio
import os
from collections.abc import Iterable
from typing import Any

import ray
import torch
from torch import Tensor
from verl.workers.rollout.base import BaseRollout
from verl.workers.rollout.replica import RolloutReplica, TokenOutput

WAIT = 0.05  # seconds in which requests gather into one batch


@ray.remote(num_cpus=0)
class Server:
    """Generates for all requests that wait, in batches of equal sampling parameters."""

    def __init__(self, path: str, config: Any):
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(1)
        torch.manual_seed(config.seed)
        self.config, self.steps = config, 0
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        self.waiting: list[tuple[list[int], dict[str, Any], asyncio.Future[TokenOutput]]] = []
        self.task: asyncio.Task[None] | None = None

    async def generate(
        self, request_id: str, prompt_ids: Iterable[int], sampling_params: dict[str, Any], **_: object
    ) -> TokenOutput:
        future = asyncio.get_running_loop().create_future()
        self.waiting.append((list(prompt_ids), dict(sampling_params), future))
        if self.task is None or self.task.done():
            self.task = asyncio.create_task(self._serve())
        return await future

    async def _serve(self) -> None:
        await asyncio.sleep(WAIT)
        while self.waiting:
            batch, self.waiting = self.waiting, []
            alike: dict[str, list[Any]] = {}
            for request in batch:
                alike.setdefault(str(sorted((k, str(v)) for k, v in request[1].items())), []).append(request)
            for requests in alike.values():
                try:
                    outputs = self._generate([prompt for prompt, _, _ in requests], requests[0][1])
                    for (_, _, future), output in zip(requests, outputs, strict=True):
                        future.set_result(output)
                except Exception as error:
                    for _, _, future in requests:
                        if not future.done():
                            future.set_exception(error)
            await asyncio.sleep(0)

    @torch.no_grad()
    def _generate(self, prompts: list[list[int]], params: dict[str, Any]) -> list[TokenOutput]:
        width, pad = max(map(len, prompts)), self.model.config.pad_token_id or 0
        ids = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        temperature = params.get("temperature", 1.0)
        sampling = {"do_sample": False}
        if temperature:
            top_k = max(params.get("top_k", -1), 0)
            sampling = {
                "do_sample": True,
                "temperature": temperature,
                "top_p": params.get("top_p", 1.0),
                "top_k": top_k,
            }
        out = self.model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=params.get("max_tokens") or self.config.response_length,
            return_dict_in_generate=True,
            output_logits=True,
            **sampling,
        )
        new = out.sequences[:, width:]
        logits = torch.stack(out.logits, 1) / (temperature or 1.0)
        logps = logits.log_softmax(-1).gather(-1, new[..., None])[..., 0]
        return [self._output(*row) for row in zip(new.tolist(), logps.tolist(), strict=True)]

    def _output(self, tokens: list[int], logps: list[float]) -> TokenOutput:
        end = self.model.config.eos_token_id
        length = tokens.index(end) + 1 if end in tokens else len(tokens)
        return TokenOutput(
            token_ids=tokens[:length],
            log_probs=logps[:length],
            stop_reason="completed",
            extra_fields={"global_steps": self.steps},
        )

    async def load_weights(self, weights: dict[str, Tensor]) -> None:
        own = self.model.state_dict()
        missing = set(own) - set(weights) - {"lm_head.weight"}  # tied
        assert not missing, missing
        self.model.load_state_dict({name: x for name, x in weights.items() if name in own}, strict=False)

    async def set_global_steps(self, steps: int) -> None:
        self.steps = steps

    async def ready(self) -> bool:
        return True

    async def wake_up(self, tags: list[str] | None = None) -> None: ...

    async def sleep(self) -> None: ...

    async def clear_kv_cache(self) -> None: ...

    async def release_kv_cache(self) -> None: ...

    async def resume_kv_cache(self) -> None: ...

    async def abort_all_requests(self, reject_request: bool = False) -> None: ...

    async def resume_generation(self) -> None: ...

    async def start_profile(self, **_: object) -> None: ...

    async def stop_profile(self) -> None: ...


def server_name(replica: int) -> str:
    return f"cpu_verl_server_{replica}"


class Replica(RolloutReplica):
    async def launch_servers(self) -> None:
        name = server_name(self.replica_rank)
        server = Server.options(name=name, max_concurrency=1000).remote(self.model_config.path, self.config)
        await server.ready.remote()
        self.servers = [server]
        self._server_handle, self._server_address = server, name


class ServerAdapter(BaseRollout):
    """Sends the weights of the FSDP workers to the server of their replica."""

    def __init__(self, config: Any, model_config: Any, device_mesh: Any, replica_rank: int = -1):
        super().__init__(config, model_config, device_mesh)
        size = self.config.tensor_model_parallel_size * self.config.data_parallel_size
        self.replica, rank_in_replica = divmod(int(os.environ["RANK"]), size)
        self.leads, self.server = rank_in_replica == 0, None

    async def resume(self, tags: list[str]) -> None: ...

    async def release(self) -> None: ...

    async def update_weights(
        self,
        weights: Iterable[tuple[str, Tensor]],
        global_steps: int | None = None,
        wire_format: str = "named_tensors",
        **_: object,
    ) -> None:
        assert wire_format == "named_tensors"
        gathered = {name: x.detach().float().clone() for name, x in weights}  # on every rank: a gather is collective
        if self.leads:
            self.server = self.server or ray.get_actor(server_name(self.replica))
            await self.server.load_weights.remote(gathered)
            if global_steps is not None:
                await self.server.set_global_steps.remote(global_steps)
