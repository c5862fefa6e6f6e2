"""Knowledge distillation as efficient pre-training (KDEP): He et al., CVPR 2022."""
