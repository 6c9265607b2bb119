"""What all tests need of the process that they run in."""

import signal

# Started in a shell's background, pytest ignores Ctrl-C, and so would every command that a test starts and interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)
