"""ReMem: prepare a teacher (SAM, reweighting), measure it, distil it (Dong et al., arXiv:2506.23041)."""
