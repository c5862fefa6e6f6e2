"""Mutual information between images and features, by reconstruction (ReMem, arXiv:2506.23041, appendix A.5)."""
