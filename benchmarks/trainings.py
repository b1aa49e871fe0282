"""Trainings that write down, by themselves and at once, what they saw and when: the truth that is compared.

Each is a script with the arguments: the file for the truth, the number of steps, a seed.
"""

BEGIN = """
    import os, sys, time
    truth = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    def saw(key, step, value):
        os.write(truth, f"{key} {step} {value!r} {time.time()!r}\\n".encode())
    import autolog
    autolog.autolog(checkpoints=autolog.Checkpoints(every="20 steps"))
    steps = int(sys.argv[2])
"""
TRAININGS = {
    "torch": BEGIN
    + """
    import torch
    torch.manual_seed(int(sys.argv[3]))
    model = torch.nn.Linear(8, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for step in range(steps):
        inputs = torch.randn(16, 8)
        loss = ((model(inputs) - inputs.sum(1, keepdim=True)) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        saw("loss", step, loss.item())
        time.sleep(0.002)
    """,
    "xgboost": BEGIN
    + """
    import numpy, xgboost
    class Truth(xgboost.callback.TrainingCallback):
        def after_iteration(self, model, epoch, evals_log):
            saw("train-logloss", epoch, evals_log["train"]["logloss"][-1])
            time.sleep(0.002)
    random = numpy.random.default_rng(int(sys.argv[3]))
    X = random.normal(size=(200, 5))
    data = xgboost.DMatrix(X, label=(X.sum(1) > 0).astype(int))
    xgboost.train(
        {"objective": "binary:logistic", "max_depth": 2, "eta": 0.01, "nthread": 1}, data, steps,
        evals=[(data, "train")], callbacks=[Truth()], verbose_eval=False,
    )
    """,
    "sklearn": BEGIN
    + """
    import numpy
    from sklearn.cluster import MiniBatchKMeans
    random = numpy.random.default_rng(int(sys.argv[3]))
    model = MiniBatchKMeans(3, random_state=0, batch_size=32)
    for step in range(steps):
        model.partial_fit(random.normal(size=(32, 4)))
        saw("inertia", step, float(model.inertia_))
        time.sleep(0.002)
    """,
    # A run for each fit; its truth bears the parameter that tells it from the others.
    "pyspark": BEGIN
    + """
    from pyspark.ml.classification import LogisticRegression
    from pyspark.ml.linalg import Vectors
    from pyspark.sql import SparkSession
    spark = SparkSession.builder.master("local[1]").appName("chaos").getOrCreate()
    spark.sparkContext.setLogLevel("OFF")
    rows = [(float(i % 2), Vectors.dense([float(i), float(i * int(sys.argv[3]) % 7)])) for i in range(20)]
    data = spark.createDataFrame(rows, ["label", "features"])
    for step in range(steps):
        model = LogisticRegression(maxIter=3, regParam=0.1 * (step + 1)).fit(data)
        for i, value in enumerate(model.summary.objectiveHistory):
            saw(f"objectiveHistory@{model.getRegParam()}", i, value)
    """,
}
#: Of trainings that are many runs: the parameter that tells these apart.
PARAMETER = {"pyspark": "regParam"}
