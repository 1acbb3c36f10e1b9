"""verl 0.9 without a GPU, for tests: a platform, a process group and a rollout backend, through verl's registries.

Loaded in every process by `VERL_USE_EXTERNAL_MODULES=cpu_verl`. Ray is told of GPUs that do not exist
(`ray_init.num_gpus`), because verl places its workers by them.
"""

from cpu_verl import adjustments, platform

platform.register()
adjustments.apply()
