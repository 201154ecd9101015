"""The embedded cohort: voxel phantoms, planted findings, reports, in official layouts."""
