"""What the tests with verl share: an environment in which it runs on CPUs, data, a policy, and runs of `main_ppo`."""

import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
SETTINGS = {
    "VERL_PLATFORM": "cpu",
    "VERL_ENGINE_DEVICE": "cuda",
    "VERL_ENGINE_VENDOR": "nvidia",
    "VERL_USE_EXTERNAL_MODULES": "cpu_verl",
    "PYTHONPATH": os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]),
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
}
os.environ.update(SETTINGS)
os.environ.pop("CUDA_VISIBLE_DEVICES", None)  # the other tests hide GPUs; Ray refuses to count any then, real or not
sys.path.insert(0, str(HERE))

import pytest  # noqa: E402
from main_ppo import Places, make_places  # noqa: E402


@pytest.fixture(scope="session")
def places(tmp_path_factory: pytest.TempPathFactory) -> Places:
    """Questions, a reward function and the embedded policy with a chat template, as verl reads them."""
    return make_places(tmp_path_factory.mktemp("places"))
