"""SFT prompt distillation: Tinker's recipe on verl's SFT trainer."""
