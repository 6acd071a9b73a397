"""Methods of others as methods of a study: of libraries, of the user's own code, and maps that exist already."""
