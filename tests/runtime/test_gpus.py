import pytest

from wsi_idc.runtime.gpus import gpus_given


@pytest.mark.parametrize(
    ("said", "given"),
    [
        ({"SLURM_JOB_ID": "1"}, None),
        ({"SLURM_JOB_ID": "1", "SLURM_JOB_GPUS": "0"}, "SLURM_JOB_GPUS=0"),
        ({"SLURM_JOB_ID": "1", "SLURM_STEP_GPUS": "2,3"}, "SLURM_STEP_GPUS=2,3"),
        ({"SLURM_JOB_ID": "1", "SLURM_GPUS_ON_NODE": "2"}, "SLURM_GPUS_ON_NODE=2"),
        ({"SLURM_JOB_ID": "1", "SLURM_GPUS_ON_NODE": "0"}, None),
        ({"SLURM_JOB_ID": "1", "CUDA_VISIBLE_DEVICES": "0"}, "CUDA_VISIBLE_DEVICES=0"),
        ({"SLURM_JOB_ID": "1", "CUDA_VISIBLE_DEVICES": "NoDevFiles"}, None),
        ({"SLURM_JOB_ID": "1", "CUDA_VISIBLE_DEVICES": ""}, None),
        ({"CUDA_VISIBLE_DEVICES": "0"}, None),
    ],
)
def test_what_slurm_says(monkeypatch: pytest.MonkeyPatch, said: dict[str, str], given: str | None):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    assert gpus_given() == given
