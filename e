error: /tmp/h/empty: no run directories (manifest.json) at or below it; give the folder that `greenbench run` wrote
