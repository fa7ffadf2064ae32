"""Power spectra and the fits that find defocus in them."""
