"use strict";
// Open the page without the token in its address, so that the token is not in the history.
const query = new URLSearchParams(location.search);
query.delete("token");
location.replace("/" + (query.size ? "?" + query : "") + location.hash);
