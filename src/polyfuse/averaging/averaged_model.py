"""AveragedModel: one average as a module, in place of `torch.optim.swa_utils.AveragedModel`."""
