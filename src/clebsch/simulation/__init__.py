"""Running a potential: molecular dynamics, relaxation, scans and elastic properties."""
