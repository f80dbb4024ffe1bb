"""Structures as LAMMPS's commands, for runs on one rank and on several."""

ONE_ATOM = """
lattice custom 2.7 a1 1 0 0 a2 0.2 1 0 a3 0.1 0.3 1.1 basis 0 0 0 triclinic/general
create_box 2 NULL 0 1 0 1 0 1
create_atoms 1 box
"""
FIVE_ATOMS = """
region box block 0 3.1 0 9 0 9
create_box 2 box
create_atoms 1 single 1 1 1
create_atoms 2 single 1.4 3.4 1.2
create_atoms 1 single 2.5 2.6 3.5
create_atoms 2 single 0.3 4.9 2.9
create_atoms 1 single 1.8 5.5 0.8
"""
