"""The SGLang process: started, watched, restarted, stopped."""
