"""The embedded cohort: voxel phantoms, planted findings, reports, in the layouts hospitals and challenges use."""
