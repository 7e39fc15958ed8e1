"""The losses, one module each: formula, slopes, the public function and its class."""
