"""Files of demonstrations that users bring: one module a format, all of them listed in ``formats``."""
