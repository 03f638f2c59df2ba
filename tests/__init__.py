from services.base.openmp import share_cores

share_cores()  # before any test imports PyTorch
