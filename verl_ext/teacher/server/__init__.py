"""The server's process: started, watched, restarted, stopped."""
