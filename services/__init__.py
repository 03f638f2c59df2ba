"""What runs beside a training job and is called by it."""
