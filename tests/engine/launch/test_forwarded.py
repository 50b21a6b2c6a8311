"""The environment of other hosts, and the file through which DeepSpeed and pdsh let it pass unchanged."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.config.cli import UsageError
from engine.launch.forwarded import file_text, forwarded, is_secret, notes_on, path_with_python, shown, user_entries

BIN = str(Path(sys.executable).parent)


def through_deepspeed(text: str) -> str:
    """The command that DeepSpeed's runner makes of the file's lines (0.19.8: runner.py, multinode_runner.py)."""
    exports = ""
    for line in text.splitlines(keepends=True):
        key, value = line.split("=", maxsplit=1)
        value = value.strip()
        if re.search(r"[^\w@%+=:,./-]", value):
            value = f'"{value}"'
        exports += f"export {key.strip()}={value}; "
    return exports


def through_pdsh(command: str) -> str:
    """What pdsh makes of a command: %% is %, and %h, %u and %n are its own."""
    return re.sub(
        r"%(.)", lambda found: {"%": "%", "h": "HOST", "u": "USER", "n": "7"}.get(found[1], found[0]), command
    )


@given(st.text(st.characters(exclude_characters="\0\n\r", exclude_categories=["Cs"]), max_size=30))
def test_any_value_arrives(value):
    lines = file_text({"GIVEN": value}, "pdsh")
    if len(lines.splitlines()) > 1:  # str.splitlines knows more line breaks than readlines
        return
    script = through_pdsh(through_deepspeed(lines)) + 'printf %s "$GIVEN"'
    told = subprocess.run(["sh", "-c", script], capture_output=True, check=True).stdout
    assert told.decode() == value


@pytest.mark.parametrize(
    "value", ["", "a b", " x ", "$HOME", "`id`", 'q"q', "it's", "\\", "100%", "%h %%n", "语料", "a=b;c"]
)
def test_values_that_deepspeed_alone_would_change(value):
    script = through_pdsh(through_deepspeed(file_text({"GIVEN": value}, "pdsh"))) + 'printf %s "$GIVEN"'
    assert subprocess.run(["bash", "-c", script], capture_output=True, check=True).stdout.decode() == value


def test_what_cannot_be_carried_is_refused():
    with pytest.raises(
        UsageError, match=r"^A has a line break, which DeepSpeed's environment file cannot hold; unset it$"
    ):
        file_text({"A": "a\nb"}, "pdsh")
    with pytest.raises(UsageError, match=r"^B is 'a b', which DeepSpeed changes on its way through openmpi; unset it$"):
        file_text({"A": "a", "B": "a b"}, "openmpi")
    assert file_text({"A": "50%"}, "openmpi") == "A=50%\n"
    with pytest.raises(UsageError) as raised:
        file_text({"MY_TOKEN": "a b"}, "openmpi")
    assert str(raised.value) == "MY_TOKEN is '...', which DeepSpeed changes on its way through openmpi; unset it"


def test_srun_would_cut_a_value_at_its_comma():
    with pytest.raises(UsageError) as raised:
        file_text({"NCCL_IB_HCA": "mlx5_0,mlx5_1", "A": "1"}, "slurm")
    assert str(raised.value) == (
        "NCCL_IB_HCA is 'mlx5_0,mlx5_1', which srun cuts at the comma in the --export that DeepSpeed writes; unset it, "
        "or start the ranks with srun alone, which takes the whole environment along (docs/launching.md, Slurm)"
    )
    assert file_text({"A": "1:2"}, "slurm") == "A=1:2\n"
    for launcher in ("pdsh", "openmpi"):
        assert file_text({"NCCL_IB_HCA": "mlx5_0,mlx5_1"}, launcher) == "NCCL_IB_HCA=mlx5_0,mlx5_1\n"


def test_what_is_forwarded(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    environ = {
        "PATH": "/bin",
        "PYTHONPATH": "/lib",
        "NCCL_DEBUG": "INFO",
        "GLOO_SOCKET_IFNAME": "ib0",
        "OMP_NUM_THREADS": "4",
        "KERNELS_BACKEND": "reference",
        "DS_ACCELERATOR": "cuda",
        "TORCH_EXTENSIONS_DIR": "/x",
        "CUDA_VISIBLE_DEVICES": "0",
        "HF_TOKEN": "secret",
        "MLFLOW_TRACKING_PASSWORD": "secret",
        "HOME": "/root",
        "MINE": "1",
    }
    sent = forwarded(environ, {"NCCL_DEBUG": "WARN", "THEIRS": "2"}, ["MINE"])
    assert sent == {
        "PATH": f"{BIN}:/bin",
        "PYTHONPATH": f"{tmp_path}:/lib",
        "NCCL_DEBUG": "WARN",
        "GLOO_SOCKET_IFNAME": "ib0",
        "OMP_NUM_THREADS": "4",
        "KERNELS_BACKEND": "reference",
        "DS_ACCELERATOR": "cuda",
        "TORCH_EXTENSIONS_DIR": "/x",
        "MINE": "1",
        "THEIRS": "2",
    }
    with pytest.raises(UsageError, match=r"^--export NONE: the variable is not set here$"):
        forwarded(environ, {}, ["NONE"])
    assert path_with_python({"PATH": f"{BIN}:/bin"}) == f"{BIN}:/bin"


def test_secrets():
    for name in (
        "WANDB_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "DB_PASSWORD", "OPENAI_APIKEY",
        "MYSQL_PASS", "PGPASSWORD", "PASSPHRASE", "DB_PWD", "GITHUB_PAT", "PAT", "BASIC_AUTH", "AUTH", "STORAGE_KEY",
        "SIGNING_KEYS", "GCP_CREDENTIALS", "MY_CREDS", "AZURE_STORAGE_CONNECTION_STRING", "CONNECTIONSTRING",
        "SLURM_JWT", "SENTRY_DSN", "DATABASE_URL", "SLACK_WEBHOOK_URL", "SESSION_COOKIE", "hf_token", "NCCL_TOKEN",
    ):  # fmt: skip
        assert is_secret(name), name
    for name in (
        "TOKENIZERS_PARALLELISM", "PATH", "PYTHONPATH", "PYTHONHASHSEED", "NCCL_DEBUG", "NCCL_IB_HCA", "NCCL_IB_PKEY",
        "NCCL_PXN_DISABLE", "NCCL_NET_PLUGIN", "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "KMP_AFFINITY", "MKL_NUM_THREADS",
        "UCX_IB_PKEY", "UCX_NET_DEVICES", "GLOO_SOCKET_IFNAME", "TORCH_NCCL_ASYNC_ERROR_HANDLING", "MASTER_PORT",
        "LD_LIBRARY_PATH", "PWD", "OLDPWD", "XAUTHORITY", "SSH_AUTH_SOCK", "GIT_AUTHOR_NAME", "KEYBOARD", "COMPASS",
        "HF_TOKEN_PATH", "AWS_SHARED_CREDENTIALS_FILE", "GPG_KEY", "PATCHES", "WANDB_MODE", "HF_HOME",
    ):  # fmt: skip
        assert not is_secret(name), name
    (kept,) = notes_on({"HF_TOKEN": "x", "WANDB_API_KEY": ""}, {}, {})
    assert kept.startswith("HF_TOKEN not forwarded: it would stand in the process list of every host; log in")
    (told,) = notes_on({"HF_TOKEN": "x"}, {"HF_TOKEN": "x"}, {})
    assert told == "HF_TOKEN can be read in the process list of every host, and DeepSpeed prints it here"


def test_what_is_printed_of_a_value():
    assert shown("WANDB_API_KEY", "abc") == "..." and shown("MINE", "a b") == "a b"
    assert shown("HTTPS_PROXY", "http://me:word@proxy:3128/") == "http://...@proxy:3128/"
    assert shown("NCCL_SOCKET_IFNAME", "eth0") == "eth0"


def test_the_user_s_own_files(monkeypatch, tmp_path):
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir(), here.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    assert user_entries({}) == {}
    (home / ".deepspeed_env").write_text("A=1\nB=2\n")
    (here / ".deepspeed_env").write_text("# mine\n\nB=3 = x \n")
    assert user_entries({}) == {"A": "1", "B": "3 = x"}
    named = tmp_path / "named"
    named.write_text("C=4\n")
    assert user_entries({"DS_ENV_FILE": str(named)}) == {"C": "4"}
    with pytest.raises(UsageError, match=r"^DS_ENV_FILE is /none, and there is no such file$"):
        user_entries({"DS_ENV_FILE": "/none"})
    for line, words in (
        ("export A=word", "'export A' before the ="),
        ("word", "no ="),
        ("1A=word", "'1A' before the ="),
        ("=word", "'' before the ="),
    ):
        named.write_text(f"C=4\n{line}\n")
        with pytest.raises(UsageError) as raised:  # whatever it is, the value is not printed
            user_entries({"DS_ENV_FILE": str(named)})
        assert str(raised.value) == f"{named}, line 2: expected NAME=VALUE, found {words}"
