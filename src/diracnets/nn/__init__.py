"""What a layer is: Dirac convolutions, diracify, fold. Needs torch alone."""
