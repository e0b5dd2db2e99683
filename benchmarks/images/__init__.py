"""`crad_kernels.grid_sample` beside `F.grid_sample` on images, volumes, tables and few points."""
