"""Linear attention: the public function, its arguments, and feature maps."""
