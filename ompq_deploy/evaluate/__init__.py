"""How far what was made is from the float network: accuracy on labelled data, and the error of every head."""
