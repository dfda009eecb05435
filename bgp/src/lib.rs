//! A sans-IO BGP-4 speaker.
