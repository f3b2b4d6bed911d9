"""What a network is: DiracNet and the networks it is compared with, and the files that they are kept in."""
