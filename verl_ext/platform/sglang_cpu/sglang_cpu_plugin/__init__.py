"""What an installation adds so that SGLang 0.5.21 runs without an accelerator; see the module beside this one."""
